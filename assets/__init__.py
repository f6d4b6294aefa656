"""Shipped data: `importlib.resources.files("videoar.assets") / "digits"` is the demo model."""
