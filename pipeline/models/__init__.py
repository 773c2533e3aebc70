"""A model of transformers before anyone teaches or learns with it: its folder, its shape, its device, its head."""
