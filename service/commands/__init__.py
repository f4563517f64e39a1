"""The command line: what asks a service (`asking`), what looks after one (`keys`, `doctor`), and what they share."""
