"""`pfgmpp bench`: how fast the service is, measured against a plain reference and against itself in the same run."""
