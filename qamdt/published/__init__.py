"""What turns published checkpoints into model folders of this package."""
