"""What is kept: values, units, run.json. The lowest layer; everything may import it."""
