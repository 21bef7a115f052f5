"""Images that come to be here."""
