"""What a training run is made of, but for its loop, which is `train_qamdt.py`."""
