"""The configuration: pydantic options at the edge of the package; the numerics never see it."""
