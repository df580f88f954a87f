"""What a trained model is worth: accuracy across resolutions, what it costs, and the report of both."""
