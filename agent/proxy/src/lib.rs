//! Carries connections: capture to mTLS, mTLS to application.
