"""What a model does and costs, measured, forecast and drawn."""
