"""What a run tells: its report, its tables, its models' cards, and how it is while it goes on."""
