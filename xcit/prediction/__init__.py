"""From images to answers with a trained model: classes, labels, numbers, objects, or the class of each pixel."""
