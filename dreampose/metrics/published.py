"""Table 1 of the paper, to be printed beside our own. Knows nothing of how ours came about."""

NOTE = (
    "Another data set (UBC Fashion, 512x640 pixels), and networks that the paper does not name: "
    "these figures do not compare with those above."
)
COLUMNS = ("L1", "SSIM", "VGG", "LPIPS", "FID", "FVD-16f", "AED")
ROWS = {
    "MRAA": (".0857", ".749", ".534", ".212", "23.42", "253.65", ".0139"),
    "TPSMM": (".0858", ".746", ".547", ".213", "22.87", "247.55", ".0137"),
    "PIDM": (".1098", ".713", ".629", ".288", "30.28", "1197.39", ".0155"),
    "DreamPose": (".0256", ".885", ".235", ".068", "13.04", "238.75", ".0110"),
    "UniAnimate (2024)": ("–", ".940", "–", ".031", "–", "68.1", "–"),
}
"""As printed in arXiv 2304.06025; the last row in arXiv 2406.01188."""
