"""A file a model: its configuration above its `nn.Module`."""
