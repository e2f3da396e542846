"""The processes of a stage or of a fine-tuning run: started, watched, ended; on one machine or several."""
