"""Search decided by the gallery itself: which threshold keeps strangers out."""
