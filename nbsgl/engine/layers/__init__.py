"""Parts that models are made of: norms and rotary embedding."""
