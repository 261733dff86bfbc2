"""Event datasets as they are published: their files, frames, and what is trained on them."""
