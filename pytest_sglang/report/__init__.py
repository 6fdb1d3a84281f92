"""pytest-html columns and charts, from the record alone."""
