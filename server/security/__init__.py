"""Who may call, and what: keys, roles, galleries and rates."""
