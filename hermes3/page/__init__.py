"""What the card and the report share: the page shell, its style, number formats and the drawing of charts."""
