"""Text from models: prompts continued token by token."""
