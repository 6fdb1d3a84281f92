"""What the pytest hooks call: collecting, judging a call, finishing, showing. The edge where pytest is known."""
