"""Features for "arrives at least 15 minutes late", as known at the start of the scheduled departure hour.

flywheel apply examples/flights/features.py
"""

import flywheel as fw

PLANES_URI = "s3://flywheel/flights/planes/"
SCORED_URI = "s3://flywheel/flights/scored/"
WEATHER = ("temp", "humid", "wind_speed", "precip", "visib")
KEYS = dict.fromkeys(("carrier", "tailnum", "origin", "dest"), fw.STRING)
REQUEST = {"hour": fw.INT64, "distance": fw.FLOAT64}
PLANE = dict.fromkeys(("built", "seats", "engines"), fw.FLOAT64)
LANDED = {"landed_at": fw.TIMESTAMP, "prediction_time": fw.TIMESTAMP, "arr_delay": fw.FLOAT64}

carrier = fw.Entity("carrier", {"carrier": fw.STRING}, description="Airline, two-letter code")
origin = fw.Entity("origin", {"origin": fw.STRING}, description="Airport of departure")
dest = fw.Entity("dest", {"dest": fw.STRING}, description="Airport of arrival")
route = fw.Entity("route", {"origin": fw.STRING, "dest": fw.STRING}, description="Origin and destination")
plane = fw.Entity("plane", {"tailnum": fw.STRING}, description="Aircraft by tail number")

planes = fw.ParquetSource(
    "planes",
    {"tailnum": fw.STRING, "registered_at": fw.TIMESTAMP, **PLANE},
    timestamp="registered_at",
    uri=PLANES_URI,
)
weather = fw.StreamSource(
    "weather",
    {"origin": fw.STRING, "known_at": fw.TIMESTAMP, **dict.fromkeys(WEATHER, fw.FLOAT64)},
    timestamp="known_at",
    description="Hourly observations, known one hour after they were made",
)
departures = fw.StreamSource(
    "departures",
    {**KEYS, "departed_at": fw.TIMESTAMP, "dep_delay": fw.FLOAT64},
    timestamp="departed_at",
    description="Take-offs, with the departure delay",
)
arrivals = fw.StreamSource(
    "arrivals",
    {**KEYS, **REQUEST, **LANDED},
    timestamp="landed_at",
    description="Landings, with the arrival delay and therefore the label",
)
trip = fw.RequestSource("trip", REQUEST, description="Sent with every request")

delays = [fw.mean("dep_delay", "1h", name="delay_1h"), fw.mean("dep_delay", "3h", name="delay_3h")]
worst = [fw.maximum("dep_delay", "3h", name="worst_3h"), fw.count("3h", name="departures_3h")]
recent = [fw.mean("arr_delay", "6h", name="delay_6h")]
week = [fw.mean("arr_delay", "7d", name="delay_7d")]
carrier_days = [fw.mean("arr_delay", "1d", name="delay_1d"), *week, fw.std("arr_delay", "7d", name="std_7d")]

plane_facts = fw.BatchView("plane_facts", plane, planes, PLANE)
sky = fw.StreamView("sky", origin, weather, [fw.last(name, "6h", name=name) for name in WEATHER])
airport_now = fw.StreamView("airport_now", origin, departures, [*delays, *worst], tile="5m")
carrier_week = fw.StreamView("carrier_week", carrier, arrivals, carrier_days, tile="1h")
route_week = fw.StreamView("route_week", route, arrivals, week, tile="1h")
dest_now = fw.StreamView("dest_now", dest, arrivals, recent, tile="30m")
trip_facts = fw.OnDemandView(
    "trip_facts",
    {
        "hour": "CAST(hour AS DOUBLE)",
        "distance": "distance",
        "age": "2013.0 - plane_facts__built",
        "worsening": "airport_now__delay_1h - airport_now__delay_3h",
    },
    views=[plane_facts, airport_now],
    requests=[trip],
)
late_arrival = fw.FeatureSet(
    "late_arrival",
    [
        *[f"trip_facts:{f}" for f in ("hour", "distance", "age", "worsening")],
        *["plane_facts:seats", "plane_facts:engines", *[f"sky:{f}" for f in WEATHER]],
        *[f"airport_now:{f}" for f in ("delay_1h", "delay_3h", "worst_3h", "departures_3h")],
        *[f"carrier_week:{f}" for f in ("delay_1d", "delay_7d", "std_7d")],
        *["route_week:delay_7d", "dest_now:delay_6h"],
    ],
    description="Features of a flight at the start of its scheduled departure hour",
)
