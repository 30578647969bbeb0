"""What tests of training share: a network that learns in milliseconds, and a signal that ends its run."""

import math


# A network for latents of 2 channels, 16 frames and 4 bins, and for text states of 8 numbers.
PLAIN_MODEL = {
    "sample_size": [16, 4],
    "patch_size": [2, 4],
    "in_channels": 2,
    "num_layers": 3,
    "num_decoder_layers": 1,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "cross_attention_dim": 8,
}
# The same with all that it can be told about quality.
MODEL = PLAIN_MODEL | {"use_frame_quality": True, "use_global_quality": True, "pool_text": True}


class StopAfter:
    """Asks a run to stop after so many updates, as a signal would; never without a number."""

    def __init__(self, num_steps=math.inf):
        self.num_steps = num_steps

    @property
    def is_requested(self):
        self.num_steps -= 1
        return self.num_steps < 0
