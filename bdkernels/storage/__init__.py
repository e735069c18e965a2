"""Where tables lie: mapped from a file, or on large pages."""
