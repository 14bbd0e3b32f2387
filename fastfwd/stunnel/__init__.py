"""A stunnel.conf to forwards, for who changes over. No part of the forwarder, which never imports it."""
