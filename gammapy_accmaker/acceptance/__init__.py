"""The heart: configuration and observations to a fitted model, and the model to the background of datasets."""
