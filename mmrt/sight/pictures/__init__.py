"""Pictures for people: residency by layer and tensor, traces by layer and token."""
