"""The only place with Ray. Knows shapes of methods, never a method by name."""
