"""Detectors: networks that find objects, images [B, channels, H, W] -> boxes with a class and a score each.

A detector is ``head(backbone(images))`` like any image network (``models.base.ImageModel``): the backbone
makes feature maps of several sizes (``pyramid``), the head makes of them what ``outputs.DetectorOutput``
holds, which gives losses or boxes. So ``model.personal = ["head.*"]`` keeps the head on the clients, and
``model.train = "head"`` trains it alone. All images of a batch have one size, and are what the run's
transform makes of them: torchvision's detectors scale and normalise images themselves, and these do not.

Shape letters: B batch, C classes, M boxes of an image at most, P places (anchors) of all maps, D detections.
"""
