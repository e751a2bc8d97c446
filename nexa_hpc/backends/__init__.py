"""With which library a step does it; torch and friends are imported only below here."""
