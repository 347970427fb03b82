"""The model: a Llama-family decoder cut by layer into pure stages."""
