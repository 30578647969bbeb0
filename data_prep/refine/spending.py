"""What the language model costs: tokens counted, money estimated, and a limit that is kept before it is reached."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


_BYTES_PER_TOKEN = 4  # of English; only estimates use it, what was spent is counted by the server
_CAUTIOUS_BYTES_PER_TOKEN = 2.5


class CostLimitReached(RuntimeError):
    """The next request might cost more than `max_cost` leaves."""


@dataclass
class Usage:
    """Tokens of one or many requests.

    Args:
        input_tokens: Tokens of the prompts.
        output_tokens: Tokens of the answers.
        requests: How many requests were answered with tokens.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    requests: int = 0

    def __iadd__(self, other: "Usage") -> "Usage":
        self.input_tokens += other.input_tokens
        self.output_tokens += other.output_tokens
        self.requests += other.requests
        return self

    def to_dict(self) -> dict[str, int]:
        """Returns what a row of results holds."""
        return {"input_tokens": self.input_tokens, "output_tokens": self.output_tokens, "requests": self.requests}


def sum_usage(rows: Iterable[dict[str, Any]]) -> Usage:
    """Returns what rows of results say that they have used."""
    usage = Usage()
    for row in rows:
        usage += Usage(**row.get("usage", {}))
    return usage


@dataclass(frozen=True, kw_only=True)
class Prices:
    """What a million tokens cost; 0 for a server of your own.

    Args:
        input_price: Price of a million prompt tokens.
        output_price: Price of a million answer tokens.
        discount: Share of the price that is paid; the Batch API takes half.
    """

    input_price: float = 0.0
    output_price: float = 0.0
    discount: float = 1.0

    def cost(self, usage: Usage) -> float:
        """Returns what so many tokens cost."""
        tokens = usage.input_tokens * self.input_price + usage.output_tokens * self.output_price
        return tokens * self.discount / 1e6


@dataclass
class Spending:
    """Running totals of one job, over all its runs.

    Args:
        prices: What tokens cost.
        max_cost: Most that the job may cost in all; no limit when `None`.
        usage: What was used so far.
    """

    prices: Prices = field(default_factory=Prices)
    max_cost: float | None = None
    usage: Usage = field(default_factory=Usage)
    _reserved: float = 0.0
    _num_reserved: int = 0

    def __post_init__(self):
        if self.max_cost is not None and not self.prices.input_price and not self.prices.output_price:
            raise ValueError(
                "`max_cost` needs to know what tokens cost; give `input_price` and `output_price` per million tokens."
            )

    @property
    def cost(self) -> float:
        """What was spent so far."""
        return self.prices.cost(self.usage)

    @property
    def is_any_reserved(self) -> bool:
        """Whether requests are under way that have set something aside."""
        return self._num_reserved > 0

    def reserve(self, usage: Usage) -> float:
        """Sets aside what a request may cost at most, and returns it for `settle`.

        Raises:
            CostLimitReached: The request might exceed `max_cost`.
        """
        cost = self.prices.cost(usage)
        if self.max_cost is not None and self.cost + self._reserved + cost > self.max_cost:
            raise CostLimitReached(
                f"`max_cost` {self.max_cost:g} is reached: {self.cost:.4f} spent, {self._reserved:.4f} in requests "
                "under way. Run again with a higher limit to go on."
            )
        self._reserved += cost
        self._num_reserved += 1
        return cost

    def settle(self, reserved: float, usage: Usage) -> None:
        """Replaces what was set aside by what was used."""
        self._reserved -= reserved
        self._num_reserved -= 1
        self.usage += usage

    def describe(self) -> dict[str, str]:
        """Returns the totals for a progress bar."""
        tokens = f"{self.usage.input_tokens / 1000:.0f}k+{self.usage.output_tokens / 1000:.0f}k"
        return {"tokens": tokens} | ({"cost": f"{self.cost:.4f}"} if self.prices != Prices() else {})


def estimate_tokens(num_bytes: int) -> int:
    """Estimates how many tokens a text of so many bytes has, rather truly."""
    return -(-num_bytes // _BYTES_PER_TOKEN)


def bound_tokens(num_bytes: int) -> int:
    """Estimates how many tokens a text of so many bytes has, rather too many."""
    return round(num_bytes / _CAUTIOUS_BYTES_PER_TOKEN) + 16
