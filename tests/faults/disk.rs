//! Small and hostile places.
