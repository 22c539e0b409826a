"""Annotated images: boxes and masks in the formats that annotation tools write (COCO, VOC, YOLO)."""
