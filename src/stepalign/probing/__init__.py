"""The probe: credit of each sampled token under several contexts, before training (`stepalign.probe`)."""
