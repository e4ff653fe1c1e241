/** java Example BUNDLE ONNXRUNTIME TOKENS SEED TEMPERATURE IDS...: the ids that continue a prompt. */
public final class Example {
    public static void main(String[] words) {
        int count = Integer.parseInt(words[2]);
        long seed = Long.parseLong(words[3]);
        double temperature = Double.parseDouble(words[4]);
        long[] prompt = new long[words.length - 5];
        for (int i = 0; i < prompt.length; i++) prompt[i] = Long.parseLong(words[i + 5]);
        try (XlstmEdge model = new XlstmEdge(words[0], words[1], 1);
                XlstmEdge.Session session = model.session();
                XlstmEdge.Sampler sampler = model.sampler(prompt, temperature, seed)) {
            float[] logits = session.prefill(prompt);
            StringBuilder ids = new StringBuilder();
            for (int i = 0; i < count; i++) {
                long id = sampler.sample(logits);
                if (model.stopsAt(id)) break;
                logits = session.step(id); // what is shown has been read
                ids.append(i == 0 ? "" : " ").append(id);
            }
            System.out.println(ids);
        } catch (RuntimeException error) {
            System.err.println(error.getMessage());
            System.exit(1);
        }
    }
}
