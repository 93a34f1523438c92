"""Tables of the paper, for comparison in reports."""

NOTE = (
    "These figures are not comparable with those above: the data set is another (UBC Fashion, "
    "512x640 pixels), and the paper does not name its networks. The row of UniAnimate is from "
    "arXiv 2406.01188."
)
COLUMNS = ("L1", "SSIM", "VGG", "LPIPS", "FID", "FVD-16f", "AED")
ROWS = {
    "MRAA": (".0857", ".749", ".534", ".212", "23.42", "253.65", ".0139"),
    "TPSMM": (".0858", ".746", ".547", ".213", "22.87", "247.55", ".0137"),
    "PIDM": (".1098", ".713", ".629", ".288", "30.28", "1197.39", ".0155"),
    "DreamPose": (".0256", ".885", ".235", ".068", "13.04", "238.75", ".0110"),
    "UniAnimate (2024)": ("–", ".940", "–", ".031", "–", "68.1", "–"),
}
"""As published in arXiv 2304.06025; last row: arXiv 2406.01188."""

ABLATION_COLUMNS = ("L1", "SSIM", "VGG", "LPIPS")
ABLATIONS = {
    "CLIP only": (".025", ".882", ".247", ".070"),
    "no VAE-decoder finetune": (".025", ".897", ".210", ".057"),
    "one pose": (".019", ".899", ".208", ".056"),
    "smoothed poses": (".767", ".758", ".502", ".202"),
    "full": (".019", ".900", ".207", ".056"),
}
"""Ablations of the paper (arXiv 2304.06025); they are not comparable with `ROWS`."""
