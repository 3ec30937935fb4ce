"""What a recipe will take before it runs: steps, memory, nodes, hours, checkpoints, interruptions, money."""
