"""What losses ask of their arguments."""

from hacore.errors import HacoreError


def check_temperature(temperature: float) -> None:
    """Raise unless the temperature is positive, which NaN is not."""
    if not temperature > 0:
        raise HacoreError(f"the temperature must be positive, not {temperature}")
