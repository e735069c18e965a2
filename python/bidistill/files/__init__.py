"""Files: written whole or not at all, sealed, locked, and read without trust."""
