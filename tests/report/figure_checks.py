"""What every figure must keep, whatever it shows."""


def assert_tidy(sheet):
    """No legend and no colour bar lies on a panel, and nothing sticks out of the figure."""
    sheet.figure.canvas.draw()
    box = sheet.figure.bbox
    parts = [legend.get_window_extent() for legend in sheet.figure.legends]
    parts += [ax.get_tightbbox() for ax in sheet.figure.axes]
    for number, part in enumerate(parts):
        assert part.x0 >= 0
        assert part.y0 >= 0
        assert part.x1 <= box.width
        assert part.y1 <= box.height
        assert not any(part.overlaps(other) for other in parts[number + 1 :])
