/** Stream xLSTM bundles on Android and the JVM: a thin layer over xlstm_edge.h, which says what each call does. */
public final class XlstmEdge implements AutoCloseable {
    static {
        System.loadLibrary("xlstm_edge_jni");
    }

    private long model;

    /** Load a bundle's folder; `onnxruntime` is its library's path, or null for the usual names; 0 threads: its choice. */
    public XlstmEdge(String folder, String onnxruntime, int threads) {
        model = load(folder, onnxruntime, threads);
    }

    public Session session() {
        return new Session(this, session(model));
    }

    /** Samples ids from logits; the ids of the prompt count as seen. Other options are the bundle's own. */
    public Sampler sampler(long[] prompt, double temperature, long seed) {
        return new Sampler(this, sampler(model, prompt, temperature, seed));
    }

    /** Ends a generation and is not fed. */
    public boolean stopsAt(long id) {
        return stopsAt(model, id);
    }

    /** After its sessions and samplers. */
    @Override
    public void close() {
        freeModel(model);
        model = 0;
    }

    /** A stream of its own, for one thread at a time. */
    public static final class Session implements AutoCloseable {
        private final XlstmEdge owner;
        private long session;

        private Session(XlstmEdge owner, long session) {
            this.owner = owner;
            this.session = session;
        }

        /** Logits after the last id, an array of your own. */
        public float[] prefill(long... ids) {
            return XlstmEdge.prefill(owner.model, session, ids);
        }

        public float[] step(long id) {
            return prefill(id);
        }

        public Session fork() {
            return new Session(owner, XlstmEdge.fork(session));
        }

        public void save(String path) {
            XlstmEdge.save(session, path);
        }

        public void restore(String path) {
            XlstmEdge.restore(session, path);
        }

        public long tokens() {
            return XlstmEdge.tokens(session);
        }

        @Override
        public void close() {
            freeSession(session);
            session = 0;
        }
    }

    /** Logits to an id. */
    public static final class Sampler implements AutoCloseable {
        private final XlstmEdge owner;
        private long sampler;

        private Sampler(XlstmEdge owner, long sampler) {
            this.owner = owner;
            this.sampler = sampler;
        }

        public long sample(float[] logits) {
            return XlstmEdge.sample(owner.model, sampler, logits);
        }

        @Override
        public void close() {
            freeSampler(sampler);
            sampler = 0;
        }
    }

    private static native long load(String folder, String onnxruntime, int threads);

    private static native void freeModel(long model);

    private static native boolean stopsAt(long model, long id);

    private static native long session(long model);

    private static native void freeSession(long session);

    private static native float[] prefill(long model, long session, long[] ids);

    private static native long fork(long session);

    private static native void save(long session, String path);

    private static native void restore(long session, String path);

    private static native long tokens(long session);

    private static native long sampler(long model, long[] prompt, double temperature, long seed);

    private static native void freeSampler(long sampler);

    private static native long sample(long model, long sampler, float[] logits);
}
