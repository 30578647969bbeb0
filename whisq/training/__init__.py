"""What the scorer and the CLAP are trained with: data, encoders' cached states, losses, settings."""
