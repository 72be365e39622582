"""The probe: what runs inside the measured app, and the collector that receives its records."""
