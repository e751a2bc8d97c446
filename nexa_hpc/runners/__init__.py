"""What a step does: one module for each built-in handler."""
