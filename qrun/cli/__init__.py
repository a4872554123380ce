"""Words in, tables out. Imports only typer until a command runs."""
