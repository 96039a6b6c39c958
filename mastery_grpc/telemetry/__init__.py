"""What this process tells of itself: metrics, traces, log lines. Nobody but the composition root knows it."""
