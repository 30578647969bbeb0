"""The page in the browser: describe, listen, look, compare. It stands on the service's queue and adds no engine."""
