"""The pictures of a result of either track."""

from midog.errors import UserError


def draw(track, image, result, out, um_per_px, log, warn, system=None, atypical=False):
    """Write the report of a Track 1 result, or the contact sheets of a Track 2 result.

    Args:
        track: 1 or 2.
        image: path of what the result was made from.
        result: the platform's JSON.
        out: folder.
        um_per_px: where the image's own is not to be trusted, or None.
        log, warn: called with one line each.
        system: name and version of what made the result, for the report; None where that is not known.
        atypical: whether Track 2's default system classifies the mitotic figures, too.
    """
    if track == 1:
        from midog.report.page import write_report
        from midog.slide import open_slide

        classify_figures = None
        if atypical:
            from midog.atypical import classify_figures  # imports PyTorch
        with open_slide(image, warn, um_per_px) as slide:
            write_report(slide, result, out, image.name, warn, log, system, classify_figures)
        return
    if atypical:
        raise UserError(f"{image}: a stack's figures are classified already; leave --atypical out")
    from midog.report.contact_sheet import write_contact_sheets
    from midog.stack import Stack

    try:
        paths = write_contact_sheets(Stack(image, warn), result, out, image.name)
    except ValueError:
        raise UserError(f"{image}: not as many pages as the result has entries; give this result's own stack") from None
    for path in paths:
        log(f"contact sheet {path}")
