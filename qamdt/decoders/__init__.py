"""What trains the parts that make sound of latents: autoencoders and the vocoder."""
