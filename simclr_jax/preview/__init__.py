"""Pictures of training views."""
