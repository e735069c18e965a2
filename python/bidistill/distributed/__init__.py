"""Training on several processes: who they are, what each holds, and what they exchange."""
